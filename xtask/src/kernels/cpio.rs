//! The archive that a kernel unpacks as its first root: cpio, format "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

/// An archive while it is made. All belongs to root.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a directory and those that it lies in; `path` has no slash in front.
    pub fn directory(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let above = &path[..end];
            if self.directories.insert(above.to_owned()) {
                self.entry(above, DIRECTORY, &[]);
            }
        }
    }

    /// Adds a file, which may be run, with its directory.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.above(path);
        self.entry(path, PROGRAM, content);
    }

    /// Adds a symbolic link with its directory.
    pub fn link(&mut self, path: &str, target: &str) {
        self.above(path);
        self.entry(path, SYMLINK, target.as_bytes());
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn above(&mut self, path: &str) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (length, name) = (content.len() as u64, path.len() as u64 + 1);
        // Inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, check.
        let (inode, mode) = (u64::from(self.entries), u64::from(mode));
        let fields = [inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents begin at multiples of four.
    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_a_content_each_padded() {
        let mut archive = Archive::default();
        archive.file("ab", b"hello");
        let bytes = archive.finish();
        let header = "070701\
            00000001000081ED00000000000000000000000100000000\
            0000000500000000000000000000000000000000\
            0000000300000000";
        let mut wanted = header.as_bytes().to_vec();
        wanted.extend_from_slice(b"ab\0\0\0\0hello\0\0\0");
        assert_eq!(bytes[..wanted.len()], wanted);
        assert!(
            bytes[wanted.len()..]
                .windows(10)
                .any(|w| w == b"TRAILER!!!")
        );
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_come_once_and_before_what_lies_in_them() {
        let mut archive = Archive::default();
        archive.file("usr/lib/one", b"");
        archive.link("usr/lib/two", "one");
        let text = String::from_utf8(archive.finish()).unwrap();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("usr") < at("usr/lib") && at("usr/lib") < at("usr/lib/one"));
        assert_eq!(text.matches("usr/lib\0").count(), 1);
        assert!(text.contains("usr/lib/two\0"), "{text}");
    }
}
