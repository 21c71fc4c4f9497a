use crate::clock::now_ms;

/// How much of what a walk visits was compared, and since when.
pub(super) struct Coverage {
    /// Positions in a round of the walk.
    length: u64,
    /// Positions that were compared.
    walked: u64,
    /// When this round of the walk began, and the one before.
    round_since_ms: i64,
    before_since_ms: Option<i64>,
    /// When the last audit of everything began, and how much it compared.
    whole: Option<(i64, u64)>,
}

impl Coverage {
    /// Nothing was compared yet.
    pub(super) fn new(length: u64) -> Self {
        Self {
            length: length.max(1),
            walked: 0,
            round_since_ms: now_ms(),
            before_since_ms: None,
            whole: None,
        }
    }

    /// The walk was compared up to this position.
    pub(super) fn walked_to(&mut self, position: u64) {
        if position / self.length > self.walked / self.length {
            self.before_since_ms = Some(self.round_since_ms);
            self.round_since_ms = now_ms();
        }
        self.walked = position;
    }

    /// An audit of everything that began then has compared this much.
    pub(super) fn audited(&mut self, since_ms: i64, compared: u64) {
        self.whole = Some((since_ms, compared));
    }

    /// Since when, in milliseconds since 1970, how much was compared.
    pub(super) fn proven(&self) -> (i64, u64) {
        let walk = match self.before_since_ms {
            // What this round has not reached was reached in the one before.
            Some(since_ms) => (since_ms, self.length),
            None => (self.round_since_ms, self.walked),
        };
        self.whole.filter(|whole| whole.1 >= walk.1).unwrap_or(walk)
    }
}
