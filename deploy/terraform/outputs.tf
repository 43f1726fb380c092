output "settings" {
  description = "The service's environment: the variables of the README's table of settings."
  value       = local.settings
}

output "dead_letter_topic" {
  description = "For `signin jobs launch --parameter dead_letter_topic=...`."
  value       = google_pubsub_topic.dead_letters.id
}

output "images" {
  description = "Where images are pushed to."
  value       = "${google_artifact_registry_repository.images.location}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "templates" {
  description = "For `signin template publish --to`."
  value       = "gs://${google_storage_bucket.templates.name}/templates"
}

output "service_account" {
  description = "Whom the service is, also on Kubernetes."
  value       = google_service_account.service.email
}

output "url" {
  description = "Cloud Run's own address of the service."
  value       = one(google_cloud_run_v2_service.signin[*].uri)
}
