//! Finding backends by name: A, AAAA and SRV, with their TTLs.
