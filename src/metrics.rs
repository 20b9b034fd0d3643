//! Every metric's name, labels and handle.
