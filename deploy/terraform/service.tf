resource "google_cloud_run_v2_job" "migration" {
  count = var.service_image == "" ? 0 : 1

  name                = "${var.name}-migration"
  location            = var.region
  deletion_protection = false # it holds nothing

  template {
    template {
      service_account = google_service_account.migration.email
      max_retries     = 1
      timeout         = "600s"

      vpc_access {
        egress = "PRIVATE_RANGES_ONLY"
        network_interfaces {
          network    = google_compute_network.signin.id
          subnetwork = google_compute_subnetwork.signin.id
        }
      }

      volumes {
        name = "database"
        secret {
          secret = google_secret_manager_secret.database_url.secret_id
          items {
            path    = "url"
            version = google_secret_manager_secret_version.database_url.version
          }
        }
      }

      containers {
        image = var.service_image
        args  = ["signin", "migrate"]

        env {
          name  = "SIGNIN_DATABASE_URL_FILE"
          value = local.settings.SIGNIN_DATABASE_URL_FILE
        }

        volume_mounts {
          name       = "database"
          mount_path = "/secrets/database"
        }
      }
    }
  }

  depends_on = [google_secret_manager_secret_iam_member.migration_reads_database_url]
}

# The schema first, then the revision that needs it. The revision before goes on with the newer schema.
resource "terraform_data" "migrated" {
  count = var.service_image == "" ? 0 : 1

  triggers_replace = [var.service_image, google_sql_database_instance.signin.id]

  provisioner "local-exec" {
    command = "gcloud run jobs execute ${google_cloud_run_v2_job.migration[0].name} --project ${var.project} --region ${var.region} --wait"
  }
}

resource "google_cloud_run_v2_service" "signin" {
  count = var.service_image == "" ? 0 : 1

  name                = var.name
  location            = var.region
  deletion_protection = var.deletion_protection
  custom_audiences    = [var.oidc_audience]

  template {
    service_account                  = google_service_account.service.email
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    max_instance_request_concurrency = 500
    timeout                          = "3600s" # followed histories; everything else has its own deadline

    scaling {
      min_instance_count = var.min_instances
      max_instance_count = var.max_instances
    }

    vpc_access {
      egress = "PRIVATE_RANGES_ONLY"
      network_interfaces {
        network    = google_compute_network.signin.id
        subnetwork = google_compute_subnetwork.signin.id
      }
    }

    volumes {
      name = "database"
      secret {
        secret = google_secret_manager_secret.database_url.secret_id
        items {
          path    = "url"
          version = google_secret_manager_secret_version.database_url.version
        }
      }
    }

    volumes {
      name = "data"
      empty_dir {
        medium     = "MEMORY"
        size_limit = "64Mi"
      }
    }

    containers {
      image = var.service_image
      args  = ["signin", "serve"]

      ports {
        container_port = 8080
      }

      # cpu_idle = false: the relay and the reconciler work when no request is there.
      resources {
        cpu_idle          = false
        startup_cpu_boost = true
        limits = {
          cpu    = "1"
          memory = "1Gi"
        }
      }

      dynamic "env" {
        for_each = merge(local.settings, var.telemetry)
        content {
          name  = env.key
          value = env.value
        }
      }

      startup_probe {
        period_seconds    = 2
        timeout_seconds   = 2
        failure_threshold = 30
        http_get {
          path = "/startupz"
        }
      }

      liveness_probe {
        period_seconds    = 10
        timeout_seconds   = 3
        failure_threshold = 3
        http_get {
          path = "/healthz"
        }
      }

      volume_mounts {
        name       = "database"
        mount_path = "/secrets/database"
      }

      volume_mounts {
        name       = "data"
        mount_path = "/var/lib/signin"
      }
    }
  }

  depends_on = [
    google_secret_manager_secret_iam_member.service_reads_database_url,
    terraform_data.migrated,
  ]
}
