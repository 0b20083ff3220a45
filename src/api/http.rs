//! Paths, methods, keys, bodies and statuses of the admin listener.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, EXPECT, HeaderValue, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use serde_json::Value;
use subtle::ConstantTimeEq;

use crate::api::error::ApiError;
use crate::api::gateway::{ApiAccess, Gateway};
use crate::api::methods;
use crate::api::request::{Call, Rules};

/// Time for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a body may have beside one message of the largest size: other fields, and the channels of a
/// broadcast.
const BODY_MARGIN_BYTES: usize = 256 * 1024;

/// Answers one request.
pub async fn answer<B>(gateway: &Gateway, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    if let Some(method) = parts.uri.path().strip_prefix("/api/") {
        if parts.method != Method::POST {
            return wrong_method("POST");
        }
        return match call(gateway, method, &parts.headers, body).await {
            Ok(result) => json(StatusCode::OK, &serde_json::json!({ "result": result })),
            Err(error) => refuse(&error, &parts.headers),
        };
    }
    let known = matches!(parts.uri.path(), "/metrics" | "/healthz" | "/readyz");
    if known && parts.method != Method::GET && parts.method != Method::HEAD {
        return wrong_method("GET, HEAD");
    }
    match parts.uri.path() {
        "/metrics" => {
            let mut response = text(StatusCode::OK, gateway.render_metrics(Instant::now()));
            // Of the text format: https://prometheus.io/docs/instrumenting/exposition_formats/
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match gateway.not_ready() {
            None => text(StatusCode::OK, "ready\n".to_owned()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        },
        _ => {
            let paths =
                "nothing is here; there are /metrics, /healthz, /readyz and POST /api/{method}\n";
            text(StatusCode::NOT_FOUND, paths.to_owned())
        }
    }
}

async fn call<B>(
    gateway: &Gateway,
    method: &str,
    headers: &HeaderMap,
    body: B,
) -> Result<Value, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    authorize(&gateway.access(), headers)?;
    // Each byte of a message may be written as an escape of six.
    let max_bytes = gateway.max_message_bytes().saturating_mul(6).saturating_add(BODY_MARGIN_BYTES);
    // Who asks before sending is answered before. Others are sending already, and many of them do not
    // read an answer before they are done.
    if headers.contains_key(EXPECT) && body.size_hint().lower() > max_bytes as u64 {
        return Err(ApiError::BodyTooBig { max_bytes });
    }
    let body = Limited::new(body, max_bytes).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(ApiError::BodyTooBig { max_bytes });
        }
        Ok(Err(_)) | Err(_) => return Err(ApiError::BodyIncomplete),
    };
    let rules = Rules { gateway: gateway.id, max_message_bytes: gateway.max_message_bytes() };
    methods::carry_out(gateway, Call::parse(method, &body, &rules)?).await
}

fn authorize(access: &ApiAccess, headers: &HeaderMap) -> Result<(), ApiError> {
    match access {
        ApiAccess::Off => Err(ApiError::Unauthorized(
            "the API is off: the operator has set no api_key, and the admin address is not a \
             loopback address",
        )),
        // A web page can make its visitor's browser post to a loopback address. Browsers say so.
        ApiAccess::Loopback if headers.contains_key(ORIGIN) => {
            Err(ApiError::Unauthorized("without an api_key the API takes no calls from web pages"))
        }
        ApiAccess::Loopback => Ok(()),
        ApiAccess::Key(key) => {
            let given = headers.get("x-api-key").map(HeaderValue::as_bytes).unwrap_or_default();
            if bool::from(given.ct_eq(key.as_bytes())) {
                Ok(())
            } else {
                Err(ApiError::Unauthorized("the header X-API-Key does not hold the API key"))
            }
        }
    }
}

fn refuse(error: &ApiError, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let wants_status = headers
        .get("x-centrifugo-error-mode")
        .is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"transport"));
    let status = if wants_status || error.is_transport() { error.status() } else { StatusCode::OK };
    let mut response = json(status, &error.to_json());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn wrong_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("this takes {allowed} only\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(status, value.to_string());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
