resource "google_pubsub_topic" "signins" {
  name                       = var.topic
  message_retention_duration = "${var.backlog_retention_days * 86400}s"

  depends_on = [google_project_service.this]
}

# What the job reads. Dataflow extends the deadlines of what it holds, so this one bounds how long the messages of a
# worker that died wait. No retry policy and, unless asked for, no dead-letter policy: Dataflow heeds neither fully,
# and the job makes dead letters itself, with the reason.
resource "google_pubsub_subscription" "job" {
  name                       = var.subscription
  topic                      = google_pubsub_topic.signins.id
  ack_deadline_seconds       = 60
  message_retention_duration = "${var.backlog_retention_days * 86400}s"

  expiration_policy {
    ttl = "" # never, also when no job has run for a month
  }

  dynamic "dead_letter_policy" {
    for_each = var.max_delivery_attempts == null ? [] : [var.max_delivery_attempts]
    content {
      dead_letter_topic     = google_pubsub_topic.dead_letters.id
      max_delivery_attempts = dead_letter_policy.value
    }
  }
}

# The job sends its dead letters here besides the table where it is launched with `dead_letter_topic`: for alerts.
resource "google_pubsub_topic" "dead_letters" {
  name = "${var.topic}-dead-letters"

  depends_on = [google_project_service.this]
}

resource "google_pubsub_subscription" "dead_letters" {
  name                       = "${var.subscription}-dead-letters"
  topic                      = google_pubsub_topic.dead_letters.id
  ack_deadline_seconds       = 60
  message_retention_duration = "2678400s" # 31 days, the most: somebody has to look

  expiration_policy {
    ttl = ""
  }
}
