# The tables are the job's: it makes them partitioned and clustered, adds the columns of newer versions, and knows
# their schemas. Here they would be written down a second time, and a plan would want to take new columns away.
resource "google_bigquery_dataset" "signins" {
  dataset_id                 = var.dataset
  location                   = var.region
  description                = "One row for each sign-in"
  delete_contents_on_destroy = !var.deletion_protection

  depends_on = [google_project_service.this]
}

# A dataset of their own, so that the service may read dead letters and no sign-in.
resource "google_bigquery_dataset" "dead_letters" {
  dataset_id                 = "${var.dataset}_dead_letters"
  location                   = var.region
  description                = "What could not become a row, with the reason and the original bytes"
  delete_contents_on_destroy = !var.deletion_protection

  depends_on = [google_project_service.this]
}
