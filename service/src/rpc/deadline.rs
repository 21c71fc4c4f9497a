//! Deadlines of clients: a call whose `grpc-timeout` has passed ends with `DEADLINE_EXCEEDED`.
//!
//! The transport has a timeout, too, which answers `CANCELLED`. This one is set first and is polled first.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// The deadline of a request: an extension of each request that has one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// The time that is left for a request, at most `limit`.
    pub(super) fn left<T>(request: &tonic::Request<T>, limit: Duration) -> Duration {
        request
            .extensions()
            .get()
            .map_or(limit, |Self(at)| at.saturating_duration_since(Instant::now()).min(limit))
    }
}

/// Ends calls at their deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService { inner }
    }
}

/// A service whose calls end at their deadline.
#[derive(Clone, Debug)]
pub(crate) struct DeadlineService<S> {
    inner: S,
}

impl<S, Asked, Body> Service<Request<Asked>> for DeadlineService<S>
where
    S: Service<Request<Asked>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    Body: Default + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Asked>) -> Self::Future {
        let deadline = timeout(request.headers()).and_then(|timeout| Instant::now().checked_add(timeout));
        let Some(deadline) = deadline else { return Box::pin(self.inner.call(request)) };
        request.extensions_mut().insert(Deadline(deadline));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let late = || Ok(Status::deadline_exceeded("the client's deadline has passed").into_http());
            tokio::time::timeout_at(deadline.into(), answer).await.unwrap_or_else(|_| late())
        })
    }
}

/// `100m` is 100 milliseconds. A header that cannot be read is as none.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]))
        };
        assert_eq!(read("300m"), Some(Duration::from_millis(300)));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!([read("5u"), read("7n")], [Some(Duration::from_micros(5)), Some(Duration::from_nanos(7))]);
        for wrong in ["", "S", "1", "123456789S", "-1S", "+1S", "1X", "1.5S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}
