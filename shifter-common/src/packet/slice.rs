//! A packet in a byte slice: for the host's tests and models.

use super::{ChecksumChange, MAX_OFFSET, Packet, checksum};

/// The bytes of a frame from its Ethernet header on.
pub struct SlicePacket<'a>(pub &'a mut [u8]);

impl SlicePacket<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.0.get(offset..offset + N)?.try_into().ok()
    }

    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.0.get_mut(offset..offset + N)?.copy_from_slice(&bytes);
        Some(())
    }
}

impl Packet for SlicePacket<'_> {
    fn get1(&self, offset: usize) -> Option<u8> {
        self.read::<1>(offset).map(|[byte]| byte)
    }
    fn get2(&self, offset: usize) -> Option<[u8; 2]> {
        self.read(offset)
    }
    fn get4(&self, offset: usize) -> Option<[u8; 4]> {
        self.read(offset)
    }
    fn get6(&self, offset: usize) -> Option<[u8; 6]> {
        self.read(offset)
    }
    fn get16(&self, offset: usize) -> Option<[u8; 16]> {
        self.read(offset)
    }
    fn put1(&mut self, offset: usize, byte: u8) -> Option<()> {
        self.write(offset, [byte])
    }
    fn put2(&mut self, offset: usize, bytes: [u8; 2]) -> Option<()> {
        self.write(offset, bytes)
    }
    fn put4(&mut self, offset: usize, bytes: [u8; 4]) -> Option<()> {
        self.write(offset, bytes)
    }
    fn put6(&mut self, offset: usize, bytes: [u8; 6]) -> Option<()> {
        self.write(offset, bytes)
    }
    fn put16(&mut self, offset: usize, bytes: [u8; 16]) -> Option<()> {
        self.write(offset, bytes)
    }

    fn transport_checksum(&mut self, offset: usize, change: ChecksumChange) -> Option<()> {
        update_in_place(self, offset, change)
    }
}

/// What a hook without checksum offload does.
#[inline(always)]
pub fn update_in_place<P: Packet>(
    packet: &mut P,
    offset: usize,
    change: ChecksumChange,
) -> Option<()> {
    let old = packet.get2(offset)?;
    if change.optional && old == [0, 0] {
        return Some(());
    }
    let mut new = checksum::update(old, change.pseudo.plus(change.plain));
    if change.optional && new == [0, 0] {
        new = [0xff, 0xff];
    }
    packet.put2(offset, new)
}
