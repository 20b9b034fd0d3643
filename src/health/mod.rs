//! Health: probes, streaks and the task that turns them into backend states.
