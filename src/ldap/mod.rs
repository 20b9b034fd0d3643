//! LDAP on the wire: framing, classification, replies. Pure: no sockets, no clock.

mod operation;

pub use operation::OperationKind;
