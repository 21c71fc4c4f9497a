use std::time::Duration;

use retrovisor_proto::v1::query_service_server::QueryService;
use retrovisor_proto::v1::{QueryRequest, QueryResponse};
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::{Services, convert};

/// Rows when the request has no limit.
const ROWS_DEFAULT: u32 = 1000;
/// Most rows of one answer.
const ROWS_MAX: u32 = 100_000;
/// Longest time of a query. A client's deadline shortens it.
const TIME_MAX: Duration = Duration::from_secs(30);

#[tonic::async_trait]
impl QueryService for Services {
    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let time = Deadline::left(&request, TIME_MAX);
        let QueryRequest { sql, parameters, limit } = request.into_inner();
        let limit = if limit == 0 { ROWS_DEFAULT } else { limit.min(ROWS_MAX) };
        let parameters: Vec<_> = parameters.iter().map(convert::value).collect();
        let rows = self
            .blocking(move |services| {
                Ok(services.manager.store().catalogue().query_within(
                    &sql,
                    &parameters,
                    limit as usize,
                    time,
                )?)
            })
            .await?;
        let table = convert::table("", &rows.columns, &rows.rows, false);
        Ok(Response::new(QueryResponse { table: Some(table), truncated: rows.truncated }))
    }
}
