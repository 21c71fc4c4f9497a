use std::time::Duration;

use retrovisor_analytics::{NamedQuery, Output, QUERIES, named_query};
use retrovisor_proto::v1::query_service_server::QueryService;
use retrovisor_proto::v1::{
    self, ListQueriesRequest, ListQueriesResponse, QueryColumn, QueryRequest, QueryResponse,
    RunNamedQueryRequest, RunNamedQueryResponse, Table,
};
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::{Services, convert};

/// Rows when the request has no limit.
const ROWS_DEFAULT: u32 = 1000;
/// Most rows of one answer.
const ROWS_MAX: u32 = 100_000;
/// Longest time of a query. A client's deadline shortens it.
const TIME_MAX: Duration = Duration::from_secs(30);

impl Services {
    /// The rows of one SELECT, and whether there were more.
    async fn select(
        &self,
        sql: String,
        values: &[v1::Cell],
        limit: u32,
        time: Duration,
    ) -> Result<(Table, bool), Status> {
        let limit = if limit == 0 { ROWS_DEFAULT } else { limit.min(ROWS_MAX) };
        let values: Vec<_> = values.iter().map(convert::value).collect();
        let rows = self
            .blocking(move |services| {
                Ok(services.manager.store().catalogue().query_within(&sql, &values, limit as usize, time)?)
            })
            .await?;
        Ok((convert::table("", &rows.columns, &rows.rows, false), rows.truncated))
    }
}

#[tonic::async_trait]
impl QueryService for Services {
    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let time = Deadline::left(&request, TIME_MAX);
        let QueryRequest { sql, parameters, limit } = request.into_inner();
        let (table, truncated) = self.select(sql, &parameters, limit, time).await?;
        Ok(Response::new(QueryResponse { table: Some(table), truncated }))
    }

    async fn list_queries(
        &self,
        _request: Request<ListQueriesRequest>,
    ) -> Result<Response<ListQueriesResponse>, Status> {
        Ok(Response::new(ListQueriesResponse { queries: QUERIES.iter().map(message).collect() }))
    }

    async fn run_named_query(
        &self,
        request: Request<RunNamedQueryRequest>,
    ) -> Result<Response<RunNamedQueryResponse>, Status> {
        let time = Deadline::left(&request, TIME_MAX);
        let RunNamedQueryRequest { name, values, limit } = request.into_inner();
        let query = named_query(&name)
            .ok_or_else(|| Status::not_found(format!("there is no query `{}`", name.escape_debug())))?;
        if query.parameters.len() != values.len() {
            let wanted = query.parameters.join(", ");
            return Err(Status::invalid_argument(format!("`{}` takes these values: {wanted}", query.name)));
        }
        let (table, truncated) = self.select(query.sql.to_owned(), &values, limit, time).await?;
        Ok(Response::new(RunNamedQueryResponse {
            query: Some(message(query)),
            table: Some(table),
            truncated,
        }))
    }
}

fn message(query: &NamedQuery) -> v1::NamedQuery {
    let column = |column: &Output| QueryColumn { name: column.name.to_owned(), doc: column.doc.to_owned() };
    v1::NamedQuery {
        name: query.name.to_owned(),
        question: query.question.to_owned(),
        parameters: query.parameters.iter().map(|parameter| (*parameter).to_owned()).collect(),
        columns: query.columns.iter().map(column).collect(),
        sql: query.sql.to_owned(),
    }
}
