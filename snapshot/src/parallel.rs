use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::thread;

/// Bound on the threads: guests need the host's processors, too.
const THREADS_MAX: usize = 4;

/// Number of threads for this many items.
fn threads(items: usize, items_min: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (items / items_min.max(1)).clamp(1, cores.min(THREADS_MAX))
}

/// Maps every item, on several threads where there are at least `items_min` items for each.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], items_min: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let answer = map_with(items, items_min, || Ok::<(), Infallible>(()), |(), item| work(item));
    answer.unwrap_or_else(|never| match never {})
}

/// Maps every item with a tool that each thread makes for itself.
pub(crate) fn map_with<T: Sync, R: Send, C, E: Send>(
    items: &[T],
    items_min: usize,
    tool: impl Fn() -> Result<C, E> + Sync,
    work: impl Fn(&mut C, &T) -> R + Sync,
) -> Result<Vec<R>, E> {
    let run = |part: &[T]| -> Result<Vec<R>, E> {
        let mut tool = tool()?;
        Ok(part.iter().map(|item| work(&mut tool, item)).collect())
    };
    let threads = threads(items.len(), items_min);
    if threads == 1 || items.is_empty() {
        return if items.is_empty() { Ok(Vec::new()) } else { run(items) };
    }
    let mut parts = items.chunks(items.len().div_ceil(threads));
    let mine = parts.next().unwrap_or_default();
    thread::scope(|scope| {
        let others: Vec<_> = parts.map(|part| scope.spawn(|| run(part))).collect();
        let mut all = run(mine)?;
        for other in others {
            match other.join() {
                Ok(part) => all.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept() {
        for count in [0, 1, 5, 1000] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(map(&items, 1, |item| item * 2), (0..count).map(|item| item * 2).collect::<Vec<_>>());
        }
        assert_eq!(map_with(&[1, 2], 1, || Err::<(), _>("no tool"), |(), item| *item), Err("no tool"));
    }
}
