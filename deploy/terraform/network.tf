# Workers and the service's way to the database. Workers need no public address: launch jobs with
# `ip_configuration: WORKER_IP_PRIVATE`.
resource "google_compute_network" "signin" {
  name                    = var.name
  auto_create_subnetworks = false

  depends_on = [google_project_service.this]
}

resource "google_compute_subnetwork" "signin" {
  name                     = var.name
  network                  = google_compute_network.signin.id
  region                   = var.region
  ip_cidr_range            = "10.10.0.0/22"
  private_ip_google_access = true

  log_config {
    flow_sampling = 0.1
  }
}

# Workers of one job talk to each other where it does not use Streaming Engine.
resource "google_compute_firewall" "workers" {
  name        = "${var.name}-workers"
  network     = google_compute_network.signin.id
  direction   = "INGRESS"
  source_tags = ["dataflow"]
  target_tags = ["dataflow"]

  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}

resource "google_compute_global_address" "database" {
  name          = "${var.name}-database"
  network       = google_compute_network.signin.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
}

resource "google_service_networking_connection" "database" {
  network                 = google_compute_network.signin.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.database.name]
}
