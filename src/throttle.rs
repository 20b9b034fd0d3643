//! The failed-login throttle, per name and per address.
