//! What the fuzz targets share: second readers to compare the proxy's own with, and a world in memory that a whole
//! session lives in.

pub mod clock;
pub mod reference;
pub mod session;
