//! Which build this is.

use std::sync::LazyLock;

/// What `--version` says: the version, and what was built in.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let fips = cfg!(feature = "fips").then(crypto_module);
        let pkcs11 = cfg!(feature = "pkcs11").then(|| "PKCS#11".into());
        let parts: Vec<String> = fips.into_iter().chain(pkcs11).collect();
        let version = env!("CARGO_PKG_VERSION");
        if parts.is_empty() { version.into() } else { format!("{version} ({})", parts.join(", ")) }
    });
    &VERSION
}

/// The library that does the cryptography, such as "AWS-LC 5.1.0" or "AWS-LC FIPS 3.4.0".
pub fn crypto_module() -> String {
    let name = if aws_lc_rs::try_fips_mode().is_ok() { "AWS-LC FIPS" } else { "AWS-LC" };
    format!("{name} {}", aws_lc_rs::awslc_version())
}
