variable "project" {
  description = "Id of the Google Cloud project; it exists and has billing."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of everything: the jobs, the service, the data."
  type        = string
  default     = "us-central1"

  validation {
    condition     = can(regex("^[a-z]+(-[a-z]+)+[0-9]+$", var.region))
    error_message = "A region looks like us-central1."
  }
}

variable "name" {
  description = "Begins the names of what is made."
  type        = string
  default     = "signin"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,14}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 16 lower-case letters, digits and hyphens: names of accounts are made of it."
  }
}

variable "service_image" {
  description = "The image of the Dockerfile's target `service`, by its digest. Empty makes all but the service."
  type        = string
  default     = ""

  validation {
    condition     = var.service_image == "" || can(regex("^[a-z0-9][-a-z0-9._/:]*@sha256:[0-9a-f]{64}$", var.service_image))
    error_message = "The image is named by its digest: LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/service@sha256:..."
  }
}

variable "template_path" {
  description = "What `signin template publish user-signin` printed."
  type        = string
  default     = ""

  validation {
    condition     = var.template_path == "" || can(regex("^gs://[^/\\s]+/\\S+$", var.template_path))
    error_message = "The path of a template is gs://BUCKET/OBJECT."
  }
}

variable "backfill_template_path" {
  description = "What `signin template publish backfill-signin` printed."
  type        = string
  default     = ""

  validation {
    condition     = var.backfill_template_path == "" || can(regex("^gs://[^/\\s]+/\\S+$", var.backfill_template_path))
    error_message = "The path of a template is gs://BUCKET/OBJECT."
  }
}

variable "topic" {
  description = "Pub/Sub topic of the sign-ins."
  type        = string
  default     = "topic-user-signin"
}

variable "subscription" {
  description = "Pub/Sub subscription that the job reads."
  type        = string
  default     = "user-signin-bigquery"
}

variable "dataset" {
  description = "BigQuery dataset of the rows; the dead letters get one beside it."
  type        = string
  default     = "user_signin"

  validation {
    condition     = can(regex("^[A-Za-z0-9_]{1,1000}$", var.dataset))
    error_message = "A dataset has letters, digits and underscores."
  }
}

variable "backlog_retention_days" {
  description = "How long Pub/Sub keeps what the job has not acknowledged, and what `signin tail --since` can see."
  type        = number
  default     = 7

  validation {
    condition     = var.backlog_retention_days >= 1 && var.backlog_retention_days <= 31
    error_message = "Pub/Sub keeps messages for 1 to 31 days."
  }
}

variable "max_delivery_attempts" {
  description = "After how many deliveries Pub/Sub itself gives a message up to the dead-letter topic; null for never."
  type        = number
  default     = null

  validation {
    condition     = var.max_delivery_attempts == null || try(var.max_delivery_attempts >= 5 && var.max_delivery_attempts <= 100, false)
    error_message = "Pub/Sub takes 5 to 100 attempts."
  }
}

variable "backfill_buckets" {
  description = "Buckets with files that backfill-signin may read."
  type        = set(string)
  default     = []
}

variable "database_tier" {
  description = "Machine of Cloud SQL for PostgreSQL."
  type        = string
  default     = "db-custom-1-3840"
}

variable "database_password_version" {
  description = "Raise it to change the database's password."
  type        = number
  default     = 1

  validation {
    condition     = var.database_password_version >= 1 && floor(var.database_password_version) == var.database_password_version
    error_message = "The version is a whole number from 1."
  }
}

variable "deletion_protection" {
  description = "Whether the database, the datasets and the service refuse to be destroyed."
  type        = bool
  default     = true
}

variable "min_instances" {
  description = "Least instances of the service: two, so that one may be replaced."
  type        = number
  default     = 2

  validation {
    condition     = var.min_instances >= 1
    error_message = "Without an instance nothing publishes what waits in the outbox, and nobody looks after the jobs."
  }
}

variable "max_instances" {
  description = "Most instances of the service; each may hold 22 connections to the database."
  type        = number
  default     = 10

  validation {
    condition     = var.max_instances >= 1 && var.max_instances <= 100
    error_message = "From 1 to 100."
  }
}

variable "invokers" {
  description = "Members (user:, group:, serviceAccount:, allUsers) that Cloud Run lets through to the service, by their token in X-Serverless-Authorization: of one in Authorization it removes the signature."
  type        = set(string)
  default     = []
}

variable "oidc_issuer" {
  description = "Issuer of the tokens that the service takes."
  type        = string
  default     = "https://accounts.google.com"
}

variable "oidc_audience" {
  description = "The audience that tokens must have, those for Cloud Run too: the service's public address."
  type        = string
  default     = "https://signin.example.com"

  validation {
    condition     = can(regex("^https://", var.oidc_audience))
    error_message = "An https:// address."
  }
}

variable "oidc_scopes" {
  description = "What tokens may do: a rule such as email=backend@my-project.iam.gserviceaccount.com to scopes."
  type        = map(list(string))
  default     = {}
}

variable "telemetry" {
  description = "OTEL_... variables of the service, as OTEL_EXPORTER_OTLP_ENDPOINT of a receiver in the network: a scrape from outside would reach another instance each time."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.telemetry) : startswith(name, "OTEL_")])
    error_message = "Names of variables that begin with OTEL_."
  }
}

variable "notification_channels" {
  description = "Cloud Monitoring channels that alerts go to."
  type        = list(string)
  default     = []
}
