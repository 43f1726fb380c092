resource "google_sql_database_instance" "signin" {
  name                = var.name
  region              = var.region
  database_version    = "POSTGRES_18"
  deletion_protection = var.deletion_protection

  settings {
    tier              = var.database_tier
    edition           = "ENTERPRISE"
    availability_type = "REGIONAL"
    disk_autoresize   = true

    ip_configuration {
      ipv4_enabled    = false
      private_network = google_compute_network.signin.id
      ssl_mode        = "ENCRYPTED_ONLY"
    }

    backup_configuration {
      enabled                        = true
      point_in_time_recovery_enabled = true
    }

    # Each instance of the service holds at most 22 connections (service/db/database.py), the migration one.
    database_flags {
      name  = "max_connections"
      value = tostring(var.max_instances * 22 + 20)
    }

    database_flags {
      name  = "log_checkpoints"
      value = "on"
    }

    database_flags {
      name  = "log_connections"
      value = "on"
    }

    database_flags {
      name  = "log_disconnections"
      value = "on"
    }

    database_flags {
      name  = "log_lock_waits"
      value = "on"
    }

    database_flags {
      name  = "log_min_error_statement"
      value = "error"
    }

    database_flags {
      name  = "log_statement"
      value = "ddl"
    }
  }

  depends_on = [google_service_networking_connection.database]
}

resource "google_sql_database" "signin" {
  name     = "signin"
  instance = google_sql_database_instance.signin.name
}

ephemeral "random_password" "database" {
  length  = 32
  special = false # it stands in a URL
}

resource "google_sql_user" "signin" {
  name                = "signin"
  instance            = google_sql_database_instance.signin.name
  password_wo         = ephemeral.random_password.database.result
  password_wo_version = var.database_password_version
}

resource "google_secret_manager_secret" "database_url" {
  secret_id = "${var.name}-database-url"

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_secret_manager_secret_version" "database_url" {
  secret                 = google_secret_manager_secret.database_url.id
  secret_data_wo         = "postgresql://${google_sql_user.signin.name}:${ephemeral.random_password.database.result}@${google_sql_database_instance.signin.private_ip_address}:5432/${google_sql_database.signin.name}?sslmode=require"
  secret_data_wo_version = var.database_password_version
}
