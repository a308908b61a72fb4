//! Log-linear histograms of times: which bucket a time falls into, the same in
//! kernel and on host.
//!
//! A time is counted in units of 1,024 ns. Below eight units each has a bucket of
//! its own; from there on each power of two is cut into eight buckets of one width,
//! so a bucket is at most an eighth of its lower bound wide. What is longer than
//! the last bucket (34 s) is counted in it.

/// Buckets of a histogram.
pub const BUCKETS: usize = 184;

/// One unit is `1 << UNIT_SHIFT` ns.
const UNIT_SHIFT: u32 = 10;
/// Buckets a power of two, as a power of two.
const SUB_SHIFT: u32 = 3;
/// Power of two of the last buckets.
const LAST_POWER: u32 = 24;

/// Bucket of a time in ns; below [`BUCKETS`].
#[inline(always)]
pub const fn bucket_of(ns: u64) -> usize {
    let units = ns >> UNIT_SHIFT;
    if units < 1 << SUB_SHIFT {
        return units as usize;
    }
    if units >> (LAST_POWER + 1) != 0 {
        return BUCKETS - 1;
    }
    // Below 2^25 here, so that 32 bits do.
    let units = units as u32;
    let power = 31 - units.leading_zeros();
    let within = (units >> (power - SUB_SHIFT)) & ((1 << SUB_SHIFT) - 1);
    (((power - SUB_SHIFT + 1) << SUB_SHIFT) + within) as usize
}

/// Least time in ns that falls into a bucket; that of [`BUCKETS`] is where the last
/// one would end.
pub const fn lower_bound_ns(bucket: usize) -> u64 {
    let sub = 1 << SUB_SHIFT;
    if bucket < sub {
        return (bucket as u64) << UNIT_SHIFT;
    }
    let power = (bucket >> SUB_SHIFT) as u32 + SUB_SHIFT - 1;
    let within = (bucket & (sub - 1)) as u64;
    (sub as u64 + within) << (power - SUB_SHIFT + UNIT_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_holds_its_own_bounds_and_nothing_else() {
        for bucket in 0..BUCKETS {
            let (low, next) = (lower_bound_ns(bucket), lower_bound_ns(bucket + 1));
            assert!(low < next, "{bucket}");
            assert_eq!(bucket_of(low), bucket);
            assert_eq!(bucket_of(next - 1), bucket);
            if bucket >= 8 {
                assert!((next - low) * 8 <= low, "{bucket} is too wide");
            }
        }
        assert_eq!(bucket_of(lower_bound_ns(BUCKETS)), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }
}
