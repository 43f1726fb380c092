# Each right stands in the README's table "Permissions" with what it is for; a test compares the two.

# The service

resource "google_pubsub_topic_iam_member" "service_publishes" {
  topic  = google_pubsub_topic.signins.id
  role   = "roles/pubsub.publisher"
  member = google_service_account.service.member
}

resource "google_project_iam_member" "service_runs_jobs" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.service.member
}

resource "google_service_account_iam_member" "service_acts_as_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.service.member
}

resource "google_storage_bucket_iam_member" "service_reads_templates" {
  bucket = google_storage_bucket.templates.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.service.member
}

resource "google_bigquery_dataset_iam_member" "service_reads_dead_letters" {
  dataset_id = google_bigquery_dataset.dead_letters.dataset_id
  role       = "roles/bigquery.dataViewer"
  member     = google_service_account.service.member
}

resource "google_project_iam_member" "service_queries" {
  project = var.project
  role    = "roles/bigquery.jobUser"
  member  = google_service_account.service.member
}

resource "google_project_iam_member" "service_reads_metrics" {
  project = var.project
  role    = "roles/monitoring.viewer"
  member  = google_service_account.service.member
}

resource "google_secret_manager_secret_iam_member" "service_reads_database_url" {
  secret_id = google_secret_manager_secret.database_url.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.service.member
}

# The migration

resource "google_secret_manager_secret_iam_member" "migration_reads_database_url" {
  secret_id = google_secret_manager_secret.database_url.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.migration.member
}

# The workers

resource "google_project_iam_member" "worker_works" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member
}

resource "google_project_iam_member" "worker_looks_at_jobs" {
  project = var.project
  role    = "roles/dataflow.viewer"
  member  = google_service_account.worker.member
}

resource "google_pubsub_subscription_iam_member" "worker_consumes" {
  subscription = google_pubsub_subscription.job.id
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.worker.member
}

resource "google_pubsub_subscription_iam_member" "worker_looks_at_subscription" {
  subscription = google_pubsub_subscription.job.id
  role         = "roles/pubsub.viewer"
  member       = google_service_account.worker.member
}

resource "google_pubsub_topic_iam_member" "worker_publishes_dead_letters" {
  topic  = google_pubsub_topic.dead_letters.id
  role   = "roles/pubsub.publisher"
  member = google_service_account.worker.member
}

resource "google_bigquery_dataset_iam_member" "worker_writes_rows" {
  dataset_id = google_bigquery_dataset.signins.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = google_service_account.worker.member
}

resource "google_bigquery_dataset_iam_member" "worker_writes_dead_letters" {
  dataset_id = google_bigquery_dataset.dead_letters.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = google_service_account.worker.member
}

resource "google_project_iam_member" "worker_alters_tables" {
  project = var.project
  role    = "roles/bigquery.jobUser"
  member  = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_stages" {
  bucket = google_storage_bucket.work.name
  role   = "roles/storage.objectUser"
  member = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_reads_backfills" {
  for_each = var.backfill_buckets

  bucket = each.value
  role   = "roles/storage.objectViewer"
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker_pulls_image" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# Pub/Sub itself, where it gives messages up

resource "google_pubsub_topic_iam_member" "pubsub_publishes_dead_letters" {
  count = var.max_delivery_attempts == null ? 0 : 1

  topic  = google_pubsub_topic.dead_letters.id
  role   = "roles/pubsub.publisher"
  member = local.pubsub_agent
}

resource "google_pubsub_subscription_iam_member" "pubsub_acknowledges" {
  count = var.max_delivery_attempts == null ? 0 : 1

  subscription = google_pubsub_subscription.job.id
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}

# Callers: Cloud Run checks their token in X-Serverless-Authorization, the service its own in Authorization.

resource "google_cloud_run_v2_service_iam_member" "callers" {
  for_each = var.service_image == "" ? [] : var.invokers

  name     = google_cloud_run_v2_service.signin[0].name
  location = google_cloud_run_v2_service.signin[0].location
  role     = "roles/run.invoker"
  member   = each.value
}
