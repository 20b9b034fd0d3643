//! The admin HTTP server: metrics, health, status page and control.
