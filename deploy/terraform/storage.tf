resource "google_storage_bucket" "templates" {
  name                        = "${var.project}-${var.name}-templates"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # `signin template publish` never overwrites; this keeps it so for everybody else.
  versioning {
    enabled = true
  }

  depends_on = [google_project_service.this]
}

resource "google_storage_bucket" "work" {
  name                        = "${var.project}-${var.name}-work"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Nothing here is worth keeping twice, and nothing deleted is worth paying for.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  # Of temp/ alone: a streaming job that runs for months reads staging/ whenever it gets a new worker.
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age            = 14
      matches_prefix = ["temp/"]
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  description   = "The images of the Dockerfile's targets"

  docker_config {
    immutable_tags = true
  }

  depends_on = [google_project_service.this]
}
