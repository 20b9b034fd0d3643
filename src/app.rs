//! The composition root: the only place that wires all the parts together.
