# What only Google sees. The rules over the service's own metrics are Prometheus'.

resource "google_monitoring_alert_policy" "backlog" {
  display_name          = "${var.name}: sign-ins wait in Pub/Sub"
  combiner              = "OR"
  notification_channels = var.notification_channels

  conditions {
    display_name = "The oldest message that no job has acknowledged is older than ten minutes"

    condition_threshold {
      filter          = "metric.type=\"pubsub.googleapis.com/subscription/oldest_unacked_message_age\" AND resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=\"${google_pubsub_subscription.job.name}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 600
      duration        = "300s"

      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    content = "Is a job running (`signin jobs list --active`), does it keep up, does BigQuery take rows (`signin jobs messages`)?"
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "dead_letters" {
  display_name          = "${var.name}: dead letters"
  combiner              = "OR"
  notification_channels = var.notification_channels

  conditions {
    display_name = "Dead letters arrived in the last ten minutes"

    condition_threshold {
      filter          = "metric.type=\"pubsub.googleapis.com/topic/send_message_operation_count\" AND resource.type=\"pubsub_topic\" AND resource.labels.topic_id=\"${google_pubsub_topic.dead_letters.name}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period     = "600s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    content = "`signin dead-letters list` tells the reasons, `signin dead-letters replay` publishes again what has been mended."
  }

  depends_on = [google_project_service.this]
}
