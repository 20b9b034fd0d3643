//! May this address enter?
