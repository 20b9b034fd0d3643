//! The small in-process directory behind \`demo\` and the tests.
