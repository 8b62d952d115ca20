//! The heart of the API server: registry, versions, watches, patches, validation.
