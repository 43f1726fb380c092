locals {
  # What the service reads; the output `settings` says the same.
  settings = {
    SIGNIN_PROJECT                = var.project
    SIGNIN_REGION                 = var.region
    SIGNIN_TOPIC                  = google_pubsub_topic.signins.name
    SIGNIN_SUBSCRIPTION           = google_pubsub_subscription.job.name
    SIGNIN_TABLE                  = "${google_bigquery_dataset.signins.dataset_id}.signins"
    SIGNIN_DEAD_LETTER_TABLE      = "${google_bigquery_dataset.dead_letters.dataset_id}.dead_letters"
    SIGNIN_TEMPLATE_PATH          = coalesce(var.template_path, "gs://${google_storage_bucket.templates.name}/templates/user-signin.json")
    SIGNIN_BACKFILL_TEMPLATE_PATH = coalesce(var.backfill_template_path, "gs://${google_storage_bucket.templates.name}/templates/backfill-signin.json")
    SIGNIN_STAGING_LOCATION       = "gs://${google_storage_bucket.work.name}/staging"
    SIGNIN_TEMP_LOCATION          = "gs://${google_storage_bucket.work.name}/temp"
    SIGNIN_SERVICE_ACCOUNT        = google_service_account.worker.email
    SIGNIN_SUBNETWORK             = "regions/${var.region}/subnetworks/${google_compute_subnetwork.signin.name}"
    SIGNIN_OIDC_ISSUER            = var.oidc_issuer
    SIGNIN_OIDC_AUDIENCE          = var.oidc_audience
    SIGNIN_OIDC_SCOPES            = jsonencode(var.oidc_scopes)
    SIGNIN_DATABASE_URL_FILE      = "/secrets/database/url"
    SIGNIN_TRUSTED_PROXIES        = "*" # nothing but Google's front end reaches the container
    SIGNIN_LOG_FORMAT             = "json"
  }

  pubsub_agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
}

data "google_project" "this" {
  project_id = var.project
}
