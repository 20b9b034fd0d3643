//! The operations of LDAP (RFC 4511 §4.2–§4.12).

use std::fmt;
use std::str::FromStr;

/// What a request asks for. The names are those of metrics labels, policies and the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum OperationKind {
    /// §4.2
    Bind,
    /// §4.3
    Unbind,
    /// §4.5
    Search,
    /// §4.6
    Modify,
    /// §4.7
    Add,
    /// §4.8
    Delete,
    /// §4.9
    ModifyDn,
    /// §4.10
    Compare,
    /// §4.11
    Abandon,
    /// §4.12
    Extended,
}

impl OperationKind {
    /// Every kind, in the order of its discriminant.
    pub const ALL: [Self; 10] = [
        Self::Bind,
        Self::Unbind,
        Self::Search,
        Self::Modify,
        Self::Add,
        Self::Delete,
        Self::ModifyDn,
        Self::Compare,
        Self::Abandon,
        Self::Extended,
    ];

    /// The name used in labels, configuration and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Unbind => "unbind",
            Self::Search => "search",
            Self::Modify => "modify",
            Self::Add => "add",
            Self::Delete => "delete",
            Self::ModifyDn => "modifyDN",
            Self::Compare => "compare",
            Self::Abandon => "abandon",
            Self::Extended => "extended",
        }
    }

    /// The kind of request that carries this protocolOp tag octet; `None` for anything that isn't a request.
    pub const fn from_request_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            0x60 => Self::Bind,
            0x42 => Self::Unbind,
            0x63 => Self::Search,
            0x66 => Self::Modify,
            0x68 => Self::Add,
            0x4A => Self::Delete,
            0x6C => Self::ModifyDn,
            0x6E => Self::Compare,
            0x50 => Self::Abandon,
            0x77 => Self::Extended,
            _ => return None,
        })
    }

    /// Whether it may change the directory (password modify is an extended operation, RFC 3062).
    pub const fn may_write(self) -> bool {
        matches!(self, Self::Modify | Self::Add | Self::Delete | Self::ModifyDn | Self::Extended)
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no LDAP operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownOperation;

impl FromStr for OperationKind {
    type Err = UnknownOperation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownOperation)
    }
}
