//! Rewriting or dropping references that lead clients round the proxy.
