//! Histograms with CoreDNS's bounds.

/// Times, in microseconds: from 250 us on, each bound twice the one before.
pub(crate) type Latency = Histogram<LatencyBounds, 16>;
/// Lengths of messages, in octets.
pub(crate) type Octets = Histogram<OctetBounds, 14>;

/// The bounds of [`Latency`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LatencyBounds;

/// The bounds of [`Octets`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OctetBounds;

/// The upper bounds of the buckets of a histogram.
pub(crate) trait Bounds<const N: usize> {
    /// In the unit of what is counted, ascending.
    const BOUNDS: [u64; N];
}

impl Bounds<16> for LatencyBounds {
    const BOUNDS: [u64; 16] = [
        250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000,
        1_024_000, 2_048_000, 4_096_000, 8_192_000,
    ];
}

impl Bounds<14> for OctetBounds {
    const BOUNDS: [u64; 14] =
        [0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000];
}

/// Counts of values by their size. Counting takes no memory: it is done for every question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram<B, const N: usize> {
    buckets: [u64; N],
    count: u64,
    sum: u64,
    bounds: std::marker::PhantomData<B>,
}

impl<B, const N: usize> Default for Histogram<B, N> {
    fn default() -> Self {
        Self { buckets: [0; N], count: 0, sum: 0, bounds: std::marker::PhantomData }
    }
}

impl<B: Bounds<N>, const N: usize> Histogram<B, N> {
    /// Counts one value.
    pub(crate) fn record(&mut self, value: u64) {
        let bucket = B::BOUNDS.iter().position(|bound| value <= *bound);
        if let Some(count) = bucket.and_then(|bucket| self.buckets.get_mut(bucket)) {
            *count += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Adds what another counted.
    pub(crate) fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Each bound with how many values were no larger.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        B::BOUNDS.into_iter().zip(self.buckets).scan(0, |below, (bound, count)| {
            *below += count;
            Some((bound, *below))
        })
    }

    /// How many values there were, and what they come to.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.count, self.sum)
    }
}
