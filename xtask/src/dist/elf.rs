//! What the binary's own bytes say: that it needs no loader and no library, and
//! that the eBPF object is inside.

const MAGIC: &[u8; 4] = b"\x7fELF";
/// `e_machine` of elf.h.
const X86_64: u16 = 62;
const BPF: u16 = 247;
/// Program header that names a loader.
const PT_INTERP: u32 = 3;

/// What is wrong with it as a static binary of the agent; `None`: nothing.
pub fn problem(bytes: &[u8]) -> Option<&'static str> {
    if !bytes.starts_with(MAGIC) || half(bytes, 18) != Some(X86_64) {
        return Some("it is no program for x86_64");
    }
    let Some(kinds) = segments(bytes) else {
        return Some("it is cut off");
    };
    if kinds.contains(&PT_INTERP) {
        return Some("it needs a loader and libraries of the host");
    }
    let has_object = bytes
        .windows(20)
        .skip(1)
        .any(|at| at.starts_with(MAGIC) && half(at, 18) == Some(BPF));
    (!has_object).then_some("no eBPF object is inside")
}

/// Types of the program headers of an ELF64 file.
fn segments(bytes: &[u8]) -> Option<Vec<u32>> {
    let offset = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let size = usize::from(half(bytes, 54)?);
    let count = usize::from(half(bytes, 56)?);
    (0..count)
        .map(|number| {
            let at = offset.checked_add(number * size)?;
            let kind = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(kind.try_into().ok()?))
        })
        .collect()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one segment of a kind, and an object behind it.
    fn program(kind: u32, machine_inside: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[18..20].copy_from_slice(&X86_64.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 52]);
        bytes.extend(MAGIC);
        bytes.extend([0; 14]);
        bytes.extend(machine_inside.to_le_bytes());
        bytes
    }

    #[test]
    fn a_static_binary_with_the_object_inside_is_right() {
        assert_eq!(problem(&program(1, BPF)), None);
    }

    #[test]
    fn what_needs_a_loader_or_lacks_the_object_is_found() {
        assert!(
            problem(&program(PT_INTERP, BPF))
                .unwrap()
                .contains("loader")
        );
        assert!(problem(&program(1, X86_64)).unwrap().contains("eBPF"));
        assert!(problem(b"#!/bin/sh").is_some());
        for length in 0..80 {
            assert!(problem(&program(1, BPF)[..length]).is_some());
        }
    }
}
