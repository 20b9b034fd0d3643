//! TLS: the certificate store, the server side and the upstream side.
