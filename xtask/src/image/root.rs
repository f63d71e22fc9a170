//! What is in the image: one layer.

use std::{fs, io::Write as _};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};

use super::{PROGRAM, archive::sha256};
use crate::workspace;

/// A layer of files.
pub(super) struct Layer {
    /// As it is stored: a gzip of the tar
    pub(super) compressed: Vec<u8>,
    /// Digest of the tar, which image configurations name
    pub(super) diff_id: String,
    /// Size of the tar, in bytes
    pub(super) uncompressed: usize,
}

/// The program and the licences of what is in it.
pub(super) fn layer(program: Vec<u8>, time: u64) -> Result<Layer> {
    let read = |path: &str| fs::read(workspace::root().join(path)).with_context(|| path.to_owned());
    let mut files = vec![
        (PROGRAM.to_owned(), 0o755, program),
        ("usr/share/doc/proxy-agent/LICENSE".to_owned(), 0o644, read("LICENSE")?),
        (
            "usr/share/doc/proxy-agent/LICENSE-GPL-2.0".to_owned(),
            0o644,
            read("proxy-ebpf/LICENSE-GPL-2.0")?,
        ),
    ];
    let tar = tar(&mut files, time)?;
    // No name and no time in the header.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&tar)?;
    Ok(Layer {
        compressed: gzip.finish()?,
        diff_id: sha256(&tar),
        uncompressed: tar.len(),
    })
}

/// A tar of files (path, mode, content) and the directories they are in: sorted, owned by root, all of one time.
pub(super) fn tar(files: &mut [(String, u32, Vec<u8>)], time: u64) -> Result<Vec<u8>> {
    files.sort();
    let mut tar = tar::Builder::new(Vec::new());
    let mut directories: Vec<String> = Vec::new();
    for (path, mode, content) in files {
        for (end, _) in path.match_indices('/') {
            let directory = &path[..=end];
            if !directories.iter().any(|known| known == directory) {
                append(&mut tar, directory, tar::EntryType::Directory, 0o755, &[], time)?;
                directories.push(directory.to_owned());
            }
        }
        append(&mut tar, path, tar::EntryType::Regular, *mode, content, time)?;
    }
    tar.into_inner().context("a tar in memory")
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
    time: u64,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(time);
    header.set_size(u64::try_from(content.len())?);
    tar.append_data(&mut header, path, content)
        .with_context(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_says_nothing_of_who_made_it() {
        let files = || [("b/two", 0o755, "2"), ("b/one", 0o644, "1"), ("a", 0o600, "0")];
        let own = |(path, mode, content): (&str, u32, &str)| (path.to_owned(), mode, content.as_bytes().to_vec());
        let bytes = tar(&mut files().map(own), 7).unwrap();
        let mut reversed = files().map(own);
        reversed.reverse();
        assert_eq!(bytes, tar(&mut reversed, 7).unwrap());
        let mut archive = tar::Archive::new(&bytes[..]);
        let told: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
                assert_eq!(header.mtime().unwrap(), 7);
                (entry.path().unwrap().display().to_string(), header.mode().unwrap())
            })
            .collect();
        let expected = [("a", 0o600), ("b/", 0o755), ("b/one", 0o644), ("b/two", 0o755)];
        assert_eq!(told, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }
}
