//! Certificates of an authority of a test's own, made by `openssl`.

use std::{fs, process::Command};

use crate::folder::Folder;

const NEW_KEY: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Makes `NAME.key` and `NAME.crt` of an authority.
///
/// # Panics
/// As [`openssl`].
pub(crate) fn authority(folder: &Folder, name: &str) {
    let [key, certificate] = ["key", "crt"].map(|ending| format!("{name}.{ending}"));
    let own: &[&str] = &["-keyout", &key, "-x509", "-subj", "/CN=authority", "-out", &certificate];
    openssl(folder, &[&["req"], NEW_KEY, own].concat());
}

/// Makes `NAME.key`, and `NAME.crt` for 127.0.0.1 that the authority `ca` signed.
///
/// # Panics
/// As [`openssl`].
pub(crate) fn certificate(folder: &Folder, name: &str) {
    let [key, request, certificate] = ["key", "csr", "crt"].map(|ending| format!("{name}.{ending}"));
    let subject = format!("/CN={name}");
    let ask: &[&str] = &["-keyout", &key, "-subj", &subject, "-out", &request];
    openssl(folder, &[&["req", "-new"], NEW_KEY, ask].concat());
    fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\n").expect("write extensions");
    #[rustfmt::skip]
    openssl(folder, &[
        "x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
        "-extfile", "extensions", "-out", &certificate,
    ]);
}

/// Runs `openssl` in the folder; its output.
///
/// # Panics
/// If it is not installed, or refuses.
pub(crate) fn openssl(folder: &Folder, args: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(args).current_dir(folder.path()).output().expect("run openssl");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
