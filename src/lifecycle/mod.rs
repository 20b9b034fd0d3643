//! Starting, draining and ending: signals and systemd.
