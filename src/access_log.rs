//! The access log: one line per operation or session, written without ever blocking the data path.
