//! A named set of backends: their states, and which one serves next.
