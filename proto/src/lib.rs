//! The gRPC interface of Retrovisor.
