//! Archives of GNU tar, and such as no tool would make.

use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::images::tests::{Directory, Row, What, header, tar};

fn entries(archive: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Archive::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        let offset = entry.offset as usize;
        assert_eq!(content, archive[offset..offset + entry.size as usize], "its place");
        all.push((entry, content));
    }
    Ok(all)
}

#[test]
fn every_format_of_gnu_tar_is_read() {
    let directory = Directory::new("gnu");
    let deep = "d".repeat(90) + "/" + &"e".repeat(200);
    let file = directory.0.join(&deep).join("file");
    std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
    std::fs::write(&file, "content").expect("a file");
    std::os::unix::fs::symlink("t".repeat(150), directory.0.join("link")).expect("a link");
    std::fs::hard_link(&file, directory.0.join("same")).expect("a link");
    for format in ["gnu", "pax"] {
        let output = Command::new("tar")
            .args(["--sort=name", "--format", format, "-C"])
            .arg(&directory.0)
            .args(["-cf", "-", "."])
            .output()
            .expect("tar");
        let all = entries(&output.stdout).expect("entries");
        let kind = |wanted: &str| {
            let found = all.iter().find(|(entry, _)| entry.path == wanted.as_bytes());
            let (entry, content) = found.unwrap_or_else(|| panic!("{format}: no {wanted}"));
            (entry.kind.clone(), content.clone())
        };
        assert_eq!(kind(&format!("./{deep}/file")), (Kind::File, b"content".to_vec()));
        assert_eq!(kind("./link").0, Kind::Symlink("t".repeat(150).into_bytes()));
        assert_eq!(kind("./same").0, Kind::Link(format!("./{deep}/file").into_bytes()));
        assert_eq!(kind(&format!("./{deep}/")).0, Kind::Directory);
    }
}

#[test]
fn what_claims_to_be_larger_than_it_is_is_refused() {
    let long = header("x", b'L', "", 0o644, 0, 1 << 32).to_vec();
    let error = entries(&long).expect_err("too long").to_string();
    assert!(error.contains("an extended header has"), "{error}");
    let short = header("x", b'0', "", 0o644, 0, 1 << 20).to_vec();
    let error = entries(&short).expect_err("too short").to_string();
    assert!(error.contains("it ends within an entry"), "{error}");
    let mut wrong = tar(&[("a", 0o644, 0, What::File(b"b"))]);
    wrong[0] ^= 1;
    let error = entries(&wrong).expect_err("wrong").to_string();
    assert!(error.contains("checksum"), "{error}");
}

proptest! {
    #[test]
    fn no_archive_ends_the_program(at in 0_usize..2048, byte: u8, cut in 0_usize..4096) {
        let rows: [Row<'_>; 2] = [
            ("PaxHeaders/a", 0o644, 0, What::File(b"12 path=abc\n")),
            ("a", 0o644, 0, What::File(b"content")),
        ];
        let mut archive = tar(&rows);
        archive[156] = b'x';
        let sum: u32 = archive[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        if let Some(place) = archive.get_mut(at) {
            *place = byte;
        }
        archive.truncate(cut);
        let _ = entries(&archive);
    }
}
