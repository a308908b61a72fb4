//! Certificates of an authority that only a scenario knows.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::command::run;

/// Files in PEM.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority.
    pub ca: PathBuf,
    /// What it has signed, and the key to that.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// An authority, and a certificate for a DNS name, made by openssl in `dir`.
    pub fn make(dir: &Path, name: &str) -> Result<Self> {
        let openssl = |words: &str| {
            let mut command = Command::new("openssl");
            command.current_dir(dir).args(words.split(' '));
            run(&mut command)
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!(
            "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"
        ))?;
        openssl(&format!(
            "req {key} -keyout key.pem -out request.pem -subj /CN={name}"
        ))?;
        fs::write(dir.join("names"), format!("subjectAltName=DNS:{name}"))?;
        openssl(
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
        )?;
        Ok(Self {
            ca: dir.join("ca.pem"),
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        })
    }
}
