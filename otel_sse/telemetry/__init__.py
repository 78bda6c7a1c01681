"""What OpenTelemetry receives: metrics, spans and log events, made by the public API of each."""
