//! What is wrong with a configuration file, and where: `FILE:LINE:COLUMN: error: …`, the line, a caret, what is allowed.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The proxy does not run with this file.
    Error,
    /// It runs, but somebody should look.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One finding at one place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it stops the proxy.
    pub severity: Severity,
    /// The file, as it was named to us.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, one sentence without a full stop.
    pub message: String,
    /// What to do, what is allowed, the nearest right key: one line each.
    pub help: Vec<String>,
    excerpt: Option<Excerpt>,
}

impl Diagnostic {
    /// A finding about a file as a whole: it can't be read, for example.
    pub fn of_file(file: &Path, severity: Severity, message: impl Into<String>, help: Vec<String>) -> Self {
        Self { severity, file: file.into(), line: 1, column: 1, message: message.into(), help, excerpt: None }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, file, line, column, message, help, excerpt } = self;
        writeln!(f, "{}:{line}:{column}: {severity}: {message}", file.display())?;
        let number = line.to_string();
        let margin = number.len() + 2;
        if let Some(Excerpt { text, indent, carets }) = excerpt {
            writeln!(f, "  {number} | {text}")?;
            writeln!(f, "{:margin$} | {:indent$}{}", "", "", "^".repeat(*carets))?;
        }
        help.iter().try_for_each(|help| writeln!(f, "{:margin$} = {help}", ""))
    }
}

/// Every finding about a file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Whether any of them stops the proxy.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|found| found.severity == Severity::Error)
    }

    /// How many errors and how many warnings there are.
    pub fn counts(&self) -> (usize, usize) {
        let errors = self.0.iter().filter(|found| found.severity == Severity::Error).count();
        (errors, self.0.len() - errors)
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The findings in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }
}

impl FromIterator<Diagnostic> for Diagnostics {
    fn from_iter<I: IntoIterator<Item = Diagnostic>>(found: I) -> Self {
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by_key(|found| (found.line, found.column));
        Self(found)
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(found: Diagnostic) -> Self {
        Self(vec![found])
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|found| found.fmt(f))
    }
}

impl std::error::Error for Diagnostics {}

/// The name and text of a file, which turn a byte span into a place people can find.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) file: PathBuf,
    pub(super) text: String,
}

impl Source {
    /// A finding about the bytes of `span`; a span outside the text is moved to its end.
    pub(super) fn diagnostic(
        &self,
        span: Range<usize>,
        severity: Severity,
        message: impl Into<String>,
        help: Vec<String>,
    ) -> Diagnostic {
        let start = floor_char(&self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |newline| start + newline);
        let end = floor_char(&self.text, span.end).clamp(start, line_end);
        let column = self.text[line_start..start].chars().count();
        let width = self.text[start..end].trim_end().chars().count();
        Diagnostic {
            severity,
            file: self.file.clone(),
            line: self.text[..line_start].matches('\n').count() + 1,
            column: column + 1,
            message: message.into(),
            help,
            excerpt: Some(Excerpt::new(&self.text[line_start..line_end], column, width)),
        }
    }
}

/// The part of a line that is shown, and where its carets stand; in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    indent: usize,
    carets: usize,
}

impl Excerpt {
    /// More of a line than this tells nobody anything.
    const WIDTH: usize = 160;

    fn new(line: &str, column: usize, width: usize) -> Self {
        let skipped = if column < Self::WIDTH / 2 { 0 } else { column - Self::WIDTH / 4 };
        // Tabs would shift the carets, and a control character could drive the terminal.
        let text: String = line
            .chars()
            .skip(skipped)
            .take(Self::WIDTH)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect::<String>()
            .trim_end()
            .into();
        let indent = column - skipped;
        let carets = width.clamp(1, Self::WIDTH - indent);
        Self { text, indent, carets }
    }
}

/// The nearest start of a character at or before `index`.
fn floor_char(text: &str, index: usize) -> usize {
    let index = index.min(text.len());
    (0..=index).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str, span: Range<usize>) -> Diagnostic {
        let source = Source { file: "f.toml".into(), text: text.into() };
        source.diagnostic(span, Severity::Error, "wrong", vec!["do right".into()])
    }

    #[test]
    fn shows_the_place_the_line_and_a_caret_under_the_span() {
        assert_eq!(
            at("a = 1\n\tbé = 2 # x\n", 13..14).to_string(),
            "f.toml:2:7: error: wrong\n  2 |  bé = 2 # x\n    |       ^\n    = do right\n"
        );
    }

    #[test]
    fn a_span_over_several_lines_is_underlined_on_its_first() {
        assert_eq!(
            at("a = [\n1,\n]\n", 4..10).to_string(),
            "f.toml:1:5: error: wrong\n  1 | a = [\n    |     ^\n    = do right\n"
        );
    }

    #[test]
    fn findings_stand_in_the_order_of_the_file() {
        let found: Diagnostics = [at("a\nb\n", 2..3), at("a\nb\n", 0..1)].into_iter().collect();
        assert_eq!(found.iter().map(|found| found.line).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found.counts(), (2, 0));
    }

    proptest! {
        #[test]
        fn any_span_of_any_text_has_a_place_inside_it(text in "(?s).{0,400}", start in 0usize..2000, length in 0usize..2000) {
            let found = at(&text, start..start + length);
            let line = text.split('\n').nth(found.line - 1).expect("the line is one of the text");
            prop_assert!(found.column - 1 <= line.chars().count());
            let shown = found.to_string();
            prop_assert_eq!(shown.lines().count(), 4);
            prop_assert!(shown.lines().skip(1).all(|line| line.chars().count() < 180));
        }
    }
}
