{{/* Names and labels that several files use. Rendered by tests/deploy/test_containers.py. */}}

{{- define "wsgate.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "wsgate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "wsgate.labels" -}}
{{ include "wsgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The Secret with the API key; empty where there is none. */}}
{{- define "wsgate.secret" -}}
{{- if .Values.apiKey.existingSecret -}}
{{- .Values.apiKey.existingSecret -}}
{{- else if .Values.apiKey.value -}}
{{- include "wsgate.name" . -}}
{{- end -}}
{{- end -}}

{{/* The settings as TOML: texts, numbers and lists of texts. */}}
{{- define "wsgate.toml" -}}
listen = "0.0.0.0:8080"
admin_listen = "0.0.0.0:8081"
log_format = "json"
drain_grace = "{{ .Values.drain.graceSeconds }}s"
drain_duration = "{{ .Values.drain.durationSeconds }}s"
{{- range $name, $value := .Values.settings }}
{{- if has $name (list "listen" "admin_listen" "log_format" "drain_grace" "drain_duration") }}
{{- fail (printf "settings.%s is the chart's own; see values.yaml" $name) }}
{{- end }}
{{- if kindIs "float64" $value }}
{{ $name }} = {{ $value | int64 }}
{{- else }}
{{ $name }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end -}}
