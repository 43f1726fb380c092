resource "google_service_account" "service" {
  account_id   = "${var.name}-service"
  display_name = "The sign-in service"

  depends_on = [google_project_service.this]
}

resource "google_service_account" "worker" {
  account_id   = "${var.name}-worker"
  display_name = "Workers of the sign-in jobs"

  depends_on = [google_project_service.this]
}

resource "google_service_account" "migration" {
  account_id   = "${var.name}-migration"
  display_name = "Migrations of the sign-in service's database"

  depends_on = [google_project_service.this]
}
