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

{{/* Settings that values cannot change: ports, probes and the time to stop go by them. */}}
{{- define "wsgate.own" -}}
listen admin_listen log_format drain_grace drain_duration
{{- end -}}

{{/* Nothing, or an error: a variable would count for more than the settings' file. */}}
{{- define "wsgate.refuseOwnVariables" -}}
{{- range $variable := .Values.extraEnv }}
{{- range $name := splitList " " (include "wsgate.own" $) }}
{{- if eq $variable.name (printf "WSGATE_%s" (upper $name)) }}
{{- fail (printf "extraEnv: %s is the chart's own; see values.yaml" $variable.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The settings as TOML: texts, numbers and lists of texts. */}}
{{- define "wsgate.toml" -}}
listen = "0.0.0.0:8080"
admin_listen = "0.0.0.0:8081"
log_format = "json"
drain_grace = "{{ .Values.drain.graceSeconds }}s"
drain_duration = "{{ .Values.drain.durationSeconds }}s"
{{- range $name, $value := .Values.settings }}
{{- if has $name (splitList " " (include "wsgate.own" $)) }}
{{- fail (printf "settings.%s is the chart's own; see values.yaml" $name) }}
{{- end }}
{{- if kindIs "bool" $value }}
{{- fail (printf "settings.%s is %t, and no setting is: YAML takes off and on for false and true; write \"off\" or \"on\", in quotes" $name $value) }}
{{- end }}
{{- if kindIs "float64" $value }}
{{ $name }} = {{ $value | int64 }}
{{- else }}
{{ $name }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end -}}
