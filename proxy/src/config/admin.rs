//! `envoy.config.bootstrap.v3.Admin` -> what the admin interface logs and which paths it answers.
//! It must not know what stands under a path.

use std::sync::Arc;

use tidegate_filters::access_log::AccessLog;
use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::StringMatcher;
use tidegate_xds::pb::envoy::config::accesslog::v3 as accesslog;
use tidegate_xds::pb::envoy::config::bootstrap::v3::Admin;
use tidegate_xds::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use tidegate_xds::{FieldError, any};

use super::Compiler;

/// What the bootstrap says of the admin interface beside its address.
#[derive(Default)]
pub(crate) struct AdminOptions {
    pub access_logs: Vec<Arc<AccessLog>>,
    /// When there are any, other paths are refused.
    pub allow_paths: Vec<StringMatcher>,
}

#[expect(deprecated, reason = "Envoy takes access_log_path too")]
pub(crate) fn compile(
    compiler: &Compiler,
    admin: &Admin,
    context: &mut CompileContext<'_>,
) -> Result<AdminOptions, FieldError> {
    let mut access_logs = compiler.access_logs("access_log", &admin.access_log, context)?;
    if !admin.access_log_path.is_empty() {
        let file = FileAccessLog { path: admin.access_log_path.clone(), ..FileAccessLog::default() };
        let log = accesslog::AccessLog {
            config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any::pack(&file))),
            ..accesslog::AccessLog::default()
        };
        let log =
            AccessLog::compile(&log, context).map_err(|error| context.error_at("access_log_path", error.reason))?;
        access_logs.push(Arc::new(log));
    }
    let matcher = |(index, matcher): (usize, &_)| {
        context.within_item("allow_paths", index, |context| StringMatcher::compile(matcher, context))
    };
    let allow_paths = admin.allow_paths.iter().enumerate().map(matcher).collect::<Result<_, _>>()?;
    Ok(AdminOptions { access_logs, allow_paths })
}
