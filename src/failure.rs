//! What can go wrong, in the closed lists that metrics and logs use as labels.
