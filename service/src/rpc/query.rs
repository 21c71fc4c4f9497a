use retrovisor_proto::v1::query_service_server::QueryService;
use retrovisor_proto::v1::{QueryRequest, QueryResponse};
use tonic::{Request, Response, Status};

use super::{Services, convert};

/// Rows when the caller names no limit.
const ROWS_DEFAULT: u32 = 1000;
/// Rows at the most.
const ROWS_MAX: u32 = 100_000;

#[tonic::async_trait]
impl QueryService for Services {
    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let QueryRequest { sql, parameters, limit } = request.into_inner();
        let limit = if limit == 0 { ROWS_DEFAULT } else { limit.min(ROWS_MAX) };
        let parameters: Vec<_> = parameters.iter().map(convert::value).collect();
        let rows = self
            .blocking(move |services| {
                Ok(services.manager.store().catalogue().query(&sql, &parameters, limit as usize)?)
            })
            .await?;
        let table = convert::table("", &rows.columns, &rows.rows);
        Ok(Response::new(QueryResponse { table: Some(table), truncated: rows.truncated }))
    }
}
