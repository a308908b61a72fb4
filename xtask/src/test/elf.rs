//! As much of an eBPF object (ELF64, little-endian) as its functions need: how
//! much stack each touches and which it calls.

/// A function of the object.
#[derive(Clone, Debug, Default)]
pub struct Function {
    pub name: String,
    /// A program, not a function that others call.
    pub is_entry: bool,
    /// Bytes below the frame pointer.
    pub stack: u32,
    /// Indices of what it calls.
    pub calls: Vec<usize>,
}

/// The functions of an object.
#[derive(Debug)]
pub struct Object {
    pub functions: Vec<Function>,
}

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const REL: u32 = 9;
const EXECUTABLE: u64 = 4;
const FUNCTION: u8 = 2;
/// An instruction.
const SIZE: u64 = 8;

struct Section<'a> {
    name: String,
    kind: u32,
    flags: u64,
    link: usize,
    info: usize,
    data: &'a [u8],
}

struct Symbol {
    name: String,
    kind: u8,
    section: usize,
    value: u64,
    size: u64,
}

/// Where a function lies.
struct Place {
    section: usize,
    begin: u64,
    end: u64,
}

impl Object {
    /// Reads the functions; `None` where it is no such object.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let sections = sections(bytes)?;
        let symbols = symbols(&sections)?;
        let mut functions = Vec::new();
        let mut places = Vec::new();
        for symbol in symbols.iter().filter(|s| s.kind == FUNCTION && s.size > 0) {
            let section = sections.get(symbol.section)?;
            if section.kind != PROGBITS || section.flags & EXECUTABLE == 0 {
                continue;
            }
            functions.push(Function {
                name: symbol.name.clone(),
                is_entry: section.name != ".text",
                ..Function::default()
            });
            places.push(Place {
                section: symbol.section,
                begin: symbol.value,
                end: symbol.value + symbol.size,
            });
        }
        for (function, place) in functions.iter_mut().zip(&places) {
            let data = sections.get(place.section)?.data;
            let code = data.get(place.begin as usize..place.end as usize)?;
            function.stack = stack(code);
            for (section, target) in calls(&sections, &symbols, place, code) {
                let callee = places
                    .iter()
                    .position(|p| p.section == section && p.begin == target)?;
                if !function.calls.contains(&callee) {
                    function.calls.push(callee);
                }
            }
        }
        Some(Self { functions })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn text(bytes: &[u8], at: usize) -> String {
    let rest = bytes.get(at..).unwrap_or_default();
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end]).into_owned()
}

fn sections(bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    if bytes.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let table = u64_at(bytes, 40)? as usize;
    let size = usize::from(u16_at(bytes, 58)?);
    let count = usize::from(u16_at(bytes, 60)?);
    let header = |index: usize| bytes.get(table + index * size..table + (index + 1) * size);
    let data = |header: &[u8]| -> Option<&[u8]> {
        let (offset, size) = (u64_at(header, 24)? as usize, u64_at(header, 32)? as usize);
        // NOBITS lies nowhere in the file.
        match u32_at(header, 4)? {
            8 => Some(&[]),
            _ => bytes.get(offset..offset + size),
        }
    };
    let names = data(header(usize::from(u16_at(bytes, 62)?))?)?;
    (0..count)
        .map(|index| {
            let header = header(index)?;
            Some(Section {
                name: text(names, u32_at(header, 0)? as usize),
                kind: u32_at(header, 4)?,
                flags: u64_at(header, 8)?,
                link: u32_at(header, 40)? as usize,
                info: u32_at(header, 44)? as usize,
                data: data(header)?,
            })
        })
        .collect()
}

fn symbols(sections: &[Section<'_>]) -> Option<Vec<Symbol>> {
    let table = sections.iter().find(|section| section.kind == SYMTAB)?;
    let names = sections.get(table.link)?.data;
    table
        .data
        .chunks_exact(24)
        .map(|entry| {
            Some(Symbol {
                name: text(names, u32_at(entry, 0)? as usize),
                kind: entry[4] & 0xf,
                section: usize::from(u16_at(entry, 6)?),
                value: u64_at(entry, 8)?,
                size: u64_at(entry, 16)?,
            })
        })
        .collect()
}

/// Bytes below the frame pointer (r10) that a function touches: loads and
/// stores over r10 itself, and addresses made from it.
fn stack(code: &[u8]) -> u32 {
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut from_frame = [false; 16];
    let mut deepest = 0;
    let mut skip = false;
    for instruction in code.chunks_exact(SIZE as usize) {
        if std::mem::take(&mut skip) {
            continue;
        }
        let code = instruction[0];
        let to = usize::from(instruction[1] & 0xf);
        let from = usize::from(instruction[1] >> 4);
        let offset = i16::from_le_bytes([instruction[2], instruction[3]]);
        let number = i32::from_le_bytes([
            instruction[4],
            instruction[5],
            instruction[6],
            instruction[7],
        ]);
        let mut touch = |below: i32| deepest = deepest.max(below.min(0).unsigned_abs());
        match code & 7 {
            // BPF_LDX reads over its source, BPF_ST and BPF_STX write over their target.
            1 if from == 10 => touch(i32::from(offset)),
            2 | 3 if to == 10 => touch(i32::from(offset)),
            _ => {}
        }
        match code {
            MOVE => from_frame[to] = from == 10,
            ADD if from_frame[to] => {
                touch(number);
                from_frame[to] = false;
            }
            // BPF_LD_IMM64 takes two places.
            0x18 => {
                skip = true;
                from_frame[to] = false;
            }
            // Any other arithmetic or load writes its target.
            _ if matches!(code & 7, 0 | 1 | 4 | 7) => from_frame[to] = false,
            _ => {}
        }
    }
    deepest
}

/// Section and offset of the functions that a function calls.
fn calls(
    sections: &[Section<'_>],
    symbols: &[Symbol],
    place: &Place,
    code: &[u8],
) -> Vec<(usize, u64)> {
    const CALL: u8 = 0x85;
    /// BPF_PSEUDO_CALL in the source register.
    const OF_FUNCTION: u8 = 1;
    let relocated = |at: u64| {
        let of_section = sections
            .iter()
            .filter(|s| s.kind == REL && s.info == place.section);
        of_section
            .flat_map(|section| section.data.chunks_exact(16))
            .find(|entry| u64_at(entry, 0) == Some(at))
            .and_then(|entry| symbols.get(u32_at(entry, 12)? as usize))
    };
    let mut found = Vec::new();
    for (index, instruction) in code.chunks_exact(SIZE as usize).enumerate() {
        if instruction[0] != CALL || instruction[1] >> 4 != OF_FUNCTION {
            continue;
        }
        let at = place.begin + index as u64 * SIZE;
        let number = i64::from(i32::from_le_bytes([
            instruction[4],
            instruction[5],
            instruction[6],
            instruction[7],
        ]));
        let (section, base) = match relocated(at) {
            Some(symbol) => (symbol.section, symbol.value),
            None => (place.section, at),
        };
        let target = base.wrapping_add_signed((number + 1) * SIZE as i64);
        found.push((section, target));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Vec<u8> {
        let mut bytes = vec![code, to | from << 4];
        bytes.extend(offset.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes
    }

    #[test]
    fn stores_loads_and_addresses_below_the_frame_count() {
        let store = instruction(0x7b, 10, 1, -24, 0);
        assert_eq!(stack(&store), 24);
        let load = instruction(0x79, 1, 10, -40, 0);
        assert_eq!(stack(&[store.clone(), load].concat()), 40);
        let address = [
            instruction(0xbf, 2, 10, 0, 0),
            instruction(0x07, 2, 0, 0, -128),
        ];
        assert_eq!(stack(&[store, address.concat()].concat()), 128);
    }

    #[test]
    fn memory_that_is_not_the_stack_does_not_count() {
        let other = [
            instruction(0x7b, 1, 2, -64, 0),
            instruction(0xbf, 2, 10, 0, 0),
            // Overwritten before the addition.
            instruction(0xbf, 2, 3, 0, 0),
            instruction(0x07, 2, 0, 0, -256),
        ];
        assert_eq!(stack(&other.concat()), 0);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(Object::parse(b"").is_none());
        assert!(Object::parse(&[0x7f; 128]).is_none());
    }
}
